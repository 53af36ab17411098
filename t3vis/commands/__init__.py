"""The subcommands of ``t3vis``: a module for each group of them, whose ``add`` declares their arguments.

What takes long to load is imported in the function that needs it: a command line answers at once.
"""
