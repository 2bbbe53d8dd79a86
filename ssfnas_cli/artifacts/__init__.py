"""What ssfnas reads and writes: JSON and safetensors, checked on the way in, whole on the way out."""
