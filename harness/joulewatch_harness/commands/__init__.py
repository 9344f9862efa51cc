"""One module per subcommand of ``joulewatch``, imported only when it is named."""
