set -e
state=$GEM_SEED
draw() { # a number below $1, in $drawn
    state=$(((state * 1103515245 + 12345) % 2147483648))
    drawn=$((state / 65536 % $1))
}

services=(auth billing catalog gateway mail search)
messages=("cannot reach the database" "request took 950 ms" "retry after ERROR 503" "cache is warm" "ERROR count is 0")
mkdir logs
draw 6
first=$drawn
for i in 0 1 2 3 4 5; do
    # All services have another number of errors on the day: the first of them the most, but not over all days.
    errors=$((20 - 2 * i))
    service=${services[(first + i) % 6]}
    for day in 03 04 05; do
        for n in {10..49}; do
            draw 5
            message=${messages[drawn]}
            level=INFO
            if [ $day = 04 ] && [ $n -lt $((10 + errors)) ]; then
                level=ERROR
            elif [ $day != 04 ]; then
                draw $((2 + i))
                if [ $drawn -gt 1 ]; then level=ERROR; fi
            else
                draw 3
                if [ $drawn = 0 ]; then level=WARN; fi
            fi
            echo "2025-03-${day}T$((n % 14 + 10)):$n:00 $level $message"
        done
    done > "logs/$service.log"
done
