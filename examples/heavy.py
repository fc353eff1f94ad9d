from holdfast.tools import command, isolated


@isolated
def count_primes(below: int) -> int:
    """Count the prime numbers below a number."""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, below))


async def disk_use(path: str) -> str:
    """Say how much a directory holds."""
    result = await command(["du", "-sh", path], timeout_s=60)
    return result.stdout if result.code == 0 else result.stderr
