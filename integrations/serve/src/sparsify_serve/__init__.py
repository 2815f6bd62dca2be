"""Serve deployments over HTTP. Nothing is imported here, so that listing plugins stays fast."""
