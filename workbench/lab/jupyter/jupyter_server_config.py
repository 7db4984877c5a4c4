"""Settings of `workbench lab` that win over those of the machine and of the user, whose other settings hold."""

import os

c = get_config()  # noqa: F821

# In no argument, which every process of the machine could read.
c.IdentityProvider.token = os.environ["JUPYTER_TOKEN"]
c.PasswordIdentityProvider.hashed_password = ""
c.ServerApp.token = c.IdentityProvider.token
c.ServerApp.password = ""
# Only pages that came from this server, and only from this machine.
c.ServerApp.allow_origin = ""
c.ServerApp.allow_origin_pat = ""
c.ServerApp.allow_remote_access = False
c.ServerApp.allow_unauthenticated_access = False
c.ServerApp.disable_check_xsrf = False
c.LabApp.news_url = None
