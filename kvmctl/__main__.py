"""Entry point of the `kvmctl` command."""


def main() -> None:
    """Run the command line and exit."""
    try:
        from kvmctl.cli.main import run

        run()
    except KeyboardInterrupt:  # while Python still loaded it
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
