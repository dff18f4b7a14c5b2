"""Sources: git repositories, lorries and their pins, and the farm's shared repository."""
