cd ~
cat > count.sh << 'END'
# Print the number of orders and the total of each customer.
cut -d , -f 2 orders.csv | sort -u | while read -r customer; do
    count=0
    total=0
    for amount in $(grep ",$customer," orders.csv | cut -d , -f 3); do
        count=$((count + 1))
        total=$((total + 10#$amount))
    done
    echo "$customer $count $total"
done
END
bash count.sh
