"""What several sensor families share: sysfs files, polling threads, lists of remote targets."""
