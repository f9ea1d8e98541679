"""What is measured side by side: vmlink's modes, other CNI plugins, bare programs."""
