"""The one error that users see."""


class UserError(Exception):
    """Something that the user can mend. The message is one line: what, where (file or flag), what to do.

    The command line prints it after `error:` and exits with status 2; nothing half-written is left behind.
    """
