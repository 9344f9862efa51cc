"""Emulated machines: file trees and devices that follow a scenario, with their true power and energy."""
