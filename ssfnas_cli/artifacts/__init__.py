"""Files and folders that ssfnas writes: JSON and safetensors, written atomically and verified when read."""
