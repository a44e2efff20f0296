"""What the KV cache manager knows beyond SGLang's tree: the prompts that will come."""
