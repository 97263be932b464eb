"""Read, check and explain the two configuration files; nothing else in the program reads them."""
