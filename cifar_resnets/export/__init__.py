"""A trained network that leaves PyTorch or this project: ONNX, torch.export, timm's hub layout; each with its proof."""
