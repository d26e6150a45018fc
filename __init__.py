"""ComfyUI-LongCat: train LoRA adapters for LongCat-Image and LongCat-Video and sample with them in the node graph."""

WEB_DIRECTORY = "./js"

# pytest imports this file without a package; then there is nothing to register.
if __package__:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from .nodes.bridge import watch_node_ids

    watch_node_ids(NODE_CLASS_MAPPINGS)

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
