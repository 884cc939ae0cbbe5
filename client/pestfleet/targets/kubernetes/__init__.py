"""The target `kubernetes`: a session's Jobs in a cluster, from the Helm chart in `chart`.

Labels on the objects are the only state: from them any shell with the kubeconfig can tell what
runs, change it and remove it.
"""
