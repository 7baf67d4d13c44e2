"""Who may use what: the policy (pure), and the gate that every way in asks."""
