"""The tunnel: a way for workers to a master that sits behind a firewall.

A hardened sshd (images/tunnel) runs beside the workers; the master's machine keeps a reverse
forward to it alive with OpenSSH's own client.
"""
