"""A scanning electron microscope behind TCP: protocol, simulated server, plain client, Micro-Manager devices."""
