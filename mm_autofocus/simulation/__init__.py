"""Physics of simulated microscopes: specimens, optics, probes, detectors, drift. It knows no device and no hook."""
