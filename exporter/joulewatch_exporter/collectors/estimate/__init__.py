"""CPU power estimated from utilisation, where no CPU sensor exists."""
