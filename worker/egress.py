"""The one way out to addresses that callers name: image URLs and webhooks.

Unless a closed network is declared, only https to public addresses: the name is resolved, every address
is checked, and the connection goes to the address that was checked.
"""

from __future__ import annotations

import requests
from AntiSSRF import AntiSSRFError, AntiSSRFPolicy, PolicyConfigOptions

#: Raised by the session for an address that is not allowed.
AddressRefused = AntiSSRFError

MAX_REDIRECTS = 3


def egress_session(*, allow_private: bool) -> requests.Session:
    """Make the session; ``allow_private`` admits plain http and any address."""
    if allow_private:
        session = requests.Session()
    else:
        policy = AntiSSRFPolicy(PolicyConfigOptions.EXTERNAL_ONLY_LATEST)
        policy.add_xff_header = False
        session = policy.get_antissrf_session()
    session.trust_env = False  # a proxy of the environment would make the connection, to wherever it resolves
    session.max_redirects = MAX_REDIRECTS
    session.headers["User-Agent"] = "maskfleet"
    return session
