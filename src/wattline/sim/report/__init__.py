"""What people look at: the HTML report, and tables for a terminal."""
