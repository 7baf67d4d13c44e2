"""What a configuration names and edged cannot work with: found by the same functions at a start, by a reload, by
`edged check` and by `edged doctor`."""
