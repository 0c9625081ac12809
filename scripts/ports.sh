# Free ports for the scripts beside this one, which read it with `.`; it does nothing by itself.

# Does anybody listen on this port of 127.0.0.1?
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

next_port=$((20000 + RANDOM % 10000)) # below those that the system gives to clients
free_port() { # sets `port`
  while answers "$next_port"; do next_port=$((next_port + 1)); done
  port=$next_port next_port=$((next_port + 1))
}
