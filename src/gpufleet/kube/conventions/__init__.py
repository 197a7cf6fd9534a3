"""What manifests of each vendor mean, one file per vendor, translated into the values of `gpufleet.fleet`."""
