"""What `sdscratch doctor` looks at, a module for each: plain functions that give findings, and know nothing of Hydra."""
