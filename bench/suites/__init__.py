"""What is measured: the tasks of ./run bench."""
