"""`python -m tunekit`, which is also what `accelerate launch -m tunekit train plan.yaml` starts."""

from tunekit.cli.main import main

if __name__ == "__main__":
    main()
