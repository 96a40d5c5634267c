set -e
state=$GEM_SEED
draw() { # a number below $1, in $drawn
    state=$(((state * 1103515245 + 12345) % 2147483648))
    drawn=$((state / 65536 % $1))
}

customers=("Ann Lee" "Ann" "Bo Ek" "Cy van Dam" "Di")
{
    printf '101,Ann Lee,08\n102,Ann,09\n' # amounts and names that the wrong script fails at, in every trial
    for n in {103..140}; do
        draw 5
        customer=${customers[drawn]}
        draw 95
        printf '%d,%s,%02d\n' "$n" "$customer" "$drawn"
    done
} > orders.csv

# What is wrong with the script: three of these four.
before= inside='total=0' pattern='",$customer,"' amount='10#$amount'
draw 4
[ $drawn = 0 ] || before='total=0' inside=
[ $drawn = 1 ] || pattern=${pattern/',"'/'"'}
[ $drawn = 2 ] || pattern=${pattern//'"'/}
[ $drawn = 3 ] || amount='$amount'
grep -v '^ *$' > count.sh << END
# Print the number of orders and the total of each customer.
$before
cut -d , -f 2 orders.csv | sort -u | while read -r customer; do
    count=0
    $inside
    for amount in \$(grep $pattern orders.csv | cut -d , -f 3); do
        count=\$((count + 1))
        total=\$((total + $amount))
    done
    echo "\$customer \$count \$total"
done
END
