"""Make a tiny image-text model, to try the fine-tuning of large ones with. See --help."""

from nufm.commands.tiny_vlm import main

if __name__ == "__main__":
    main()
