set -e
state=$GEM_SEED
draw() { # a number below $1, in $drawn
    state=$(((state * 1103515245 + 12345) % 2147483648))
    drawn=$((state / 65536 % $1))
}

products=(chair desk lamp shelf sofa table)
regions=(East North South West)
echo product,price > products.csv
prices=()
for i in 0 1 2 3 4 5; do
    draw 90
    prices[i]=$((10 + drawn))
    echo "${products[i]},${prices[i]}" >> products.csv
done
revenue=(0 0 0 0)
echo region,product,units > sales.csv
for n in {1..80}; do
    draw 4
    region=$drawn
    draw 6
    product=$drawn
    draw 9
    units=$((drawn + 1))
    revenue[region]=$((revenue[region] + units * prices[product]))
    echo "${regions[region]},${products[product]},$units" >> sales.csv
done
# No two regions have the same revenue: add to one until it differs from those before it.
for region in 1 2 3; do
    for other in 0 1 2 0 1 2; do
        if [ $other -lt $region ] && [ "${revenue[other]}" = "${revenue[region]}" ]; then
            revenue[region]=$((revenue[region] + prices[0]))
            echo "${regions[region]},${products[0]},1" >> sales.csv
        fi
    done
done
