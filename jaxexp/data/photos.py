"""stub"""

from jaxexp.data.folder import Source


def photographs() -> Source:
    raise NotImplementedError
