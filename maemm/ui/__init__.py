"""What people see: pages, charts, pictures, tables as text, progress bars, and the kit of the command line."""
