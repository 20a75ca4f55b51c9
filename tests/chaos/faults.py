def plan(*a): return []
