"""`xengrant top`: all domains' grant tables live, on a terminal (`screen`) or line by line (`batch`).

Both look by way of `cli.survey` and keep what they saw in a `state.State`, whose lines `view` makes.
"""
