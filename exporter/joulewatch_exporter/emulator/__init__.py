"""A machine of known truth: trees and devices that move as a scenario says, with the true energy beside them."""
