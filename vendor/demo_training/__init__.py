"""How the demo model in vendor/demo-model was made: `python -m vendor.demo_training OUT_DIR`."""
