"""The recipes that made the demo models. They need torch; the server never imports this package."""
