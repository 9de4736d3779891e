"""Write a trained or released model as a folder that others can use. See --help."""

from nufm.commands.export import export

if __name__ == "__main__":
    export()
