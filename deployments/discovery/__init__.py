"""Finds the islands of a machine: which GPUs reach each other over NVLink, and which links are not what they should be.

    NVML, else `nvidia-smi`, else sysfs --> Machine --> Findings (islands, problems) --> table, JSON, YAML, Ray labels

Only `reading` and `measuring` touch the machine; all else is pure.
"""
