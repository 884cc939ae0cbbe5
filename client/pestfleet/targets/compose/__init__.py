"""The target `compose`: a session's containers on a Docker engine, by docker compose.

Labels on the containers, volumes and the network are the only state: from them any shell can
tell what runs, change it and remove it.
"""
