"""Predict energy and time per inference from models that are fitted to measurements.

``features`` describes a network, ``table`` and ``converters`` read measurements, ``roofline`` fits one device,
``devices`` transfers to new devices, ``fit`` combines all of it, ``evaluate`` measures the errors, ``model_file``
stores a fit, ``predict`` uses it, ``report`` prints both, ``figure`` draws. ``cards`` has data sheets of devices,
``own_card`` makes one from a run, ``fpga`` predicts FINN designs, ``recommend`` ranks,
``calibration_plan`` chooses what to measure on a new device.
"""
