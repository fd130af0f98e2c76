"""The one exception that users are meant to see."""


class MaemmError(Exception):
    """Something the user can mend.

    The text is one line: what is wrong, where in brackets, and after a semicolon what to do.
    The command line prints it behind ``maemm: error:`` and exits with status 2, without a traceback.
    """
