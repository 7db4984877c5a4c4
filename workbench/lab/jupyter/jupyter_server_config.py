"""Settings of `workbench lab`, which override those of the machine and of the user."""

import os

c = get_config()  # noqa: F821

# Not a command-line argument, because all processes of the machine can read those.
c.IdentityProvider.token = os.environ["JUPYTER_TOKEN"]
c.PasswordIdentityProvider.hashed_password = ""
c.ServerApp.token = c.IdentityProvider.token
c.ServerApp.password = ""
# Accept only requests from pages of this server, and only from this machine.
c.ServerApp.allow_origin = ""
c.ServerApp.allow_origin_pat = ""
c.ServerApp.allow_remote_access = False
c.ServerApp.allow_unauthenticated_access = False
c.ServerApp.disable_check_xsrf = False
c.LabApp.news_url = None
