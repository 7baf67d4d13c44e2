"""Minds: what says which step comes next. Each answers, passes on, or says why it cannot."""
