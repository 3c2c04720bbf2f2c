"""Entry point of the `kvmctl` command."""


def main() -> None:
    """Run the command line and exit."""
    from kvmctl.cli.main import run

    run()


if __name__ == "__main__":
    main()
