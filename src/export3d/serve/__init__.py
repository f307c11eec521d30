"""The studio's API with renderers on Ray Serve: replicas on one machine or many, which merge the frames of users."""
