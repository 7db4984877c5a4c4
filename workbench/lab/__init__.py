"""Views: several pictures that share one state, drawn by the browser from arrays, with or without a kernel."""
