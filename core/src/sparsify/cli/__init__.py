"""The commands of core, each a module loaded when it is called."""
