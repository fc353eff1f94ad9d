from heavy import count_primes, disk_use
from pydantic_ai import Agent, Tool

agent = Agent(name="workshop", tools=[Tool(count_primes, timeout=300), disk_use])
