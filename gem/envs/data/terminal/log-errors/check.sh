# The logs are those of the set-up: the model's copy may say anything.
set -e
most=0
for log in "$GEM_ORIGINAL"/logs/*.log; do
    errors=$(grep -c '^2025-03-04T[0-9:]* ERROR ' "$log")
    if [ "$errors" -gt "$most" ]; then
        most=$errors
        service=$(basename "$log" .log)
    fi
done
read -r name number rest < answer.txt || [ -n "$name" ]
[ "$name" = "$service" ] && [ "$number" = "$most" ] && [ -z "$rest" ]
